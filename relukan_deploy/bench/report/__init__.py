"""Results as people read them: on the terminal, in a README, as a picture, and as a page.

groups.py     what may be compared with what, the baseline, and ratios
finding.py    the main finding in plain sentences, and what was not measured
words.py      how figures, machines and conditions are written
styles.py     colours, lines and markers
terminal.py   tables on a terminal
markdown.py   a table for a README
plot.py       latency against batch, as a PNG
html.py       one page with everything: tables.py, charts.py (on axes.py), page.html
"""
