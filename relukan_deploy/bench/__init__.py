"""What is behind `relukan-bench`: what can be timed, how it is timed, and what is said of it.

timing.py         turns in bursts, and the figures of them
sweep.py          every subject over every batch size, several runs long
subjects/         what can be timed: a network and one way to run it
peers/            other networks, built from a shape
request.py        which subjects a process opens; remote.py and worker.py: in other processes
bench.py          the whole measurement, as one call
limits.py, startup.py, accuracy.py (with fitting.py), training.py
                  what else is measured: the ideal network, cold starts, equal accuracy, steps of training
environment.py    the machine, before and after
results.py        the results, as they are written to JSON; stored.py reads, writes and joins them
compare.py        which differences are more than noise
report/           terminal, Markdown, PNG, and the page
"""
