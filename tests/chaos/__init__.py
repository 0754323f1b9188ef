"""A randomised campaign: worlds and fault schedules out of seeds, and the checks that every run has to pass."""
