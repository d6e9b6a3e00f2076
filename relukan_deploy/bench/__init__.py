"""What is behind `relukan-bench`: a timing harness, what it runs, and reports of what it found.

timing.py     turns in bursts, and the figures of them
results.py    the results, as they are written to JSON
subjects.py   what can be timed: a network and one way to run it
sweep.py      every subject over every batch size
"""
