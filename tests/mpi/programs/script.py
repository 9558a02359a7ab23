"""Run a script as a user would, where torchvision does not load beside this torch: script.py SCRIPT FOLDER."""

import toy  # noqa: F401

import os
import runpy
import sys

if __name__ == "__main__":
    script, folder = sys.argv[1:]
    os.chdir(folder)
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")
