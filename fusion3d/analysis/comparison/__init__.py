"""Ways to fuse, compared: the same data and seeds for every operator and stage (``compare_fusion``).

rows       what is compared, as data
runs       a row and a seed as a run: its configuration, its folder, and whether what lies there is the same
jobs       runs in processes of their own
costs      parameters, operations and time of each row
elsewhere  runs of the same comparison that other pages hold
summary    the runs' numbers, with intervals
page       the table
main       the verb
"""
