"""What a model is worth when sensors fail: ``evaluate --suite robustness``.

conditions  what is tried, as data
suite       one evaluation after the other; what is there already is kept
summary     relative accuracy, and its means
page        tables and curves
main        the verb
"""
