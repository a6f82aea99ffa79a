"""One model for every subset of the sensors against a specialist for each (``compare_subsets``).

main  the runs, and the verb
page  the table
"""
