from pathlib import Path


def write_study_report(folder: Path) -> Path:
    return folder
