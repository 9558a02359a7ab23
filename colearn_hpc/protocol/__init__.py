"""When things happen, and what is said: the round, the meeting, the settings. Standard library only. See README.md."""
