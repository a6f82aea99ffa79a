"""What a planner's answers depend on: everything that a batch carries is changed, one after the other.

fields   batches with some of their fields changed, by role
changes  what is changed, and for which samples it says something
future   does what comes after a keyframe reach what a model is given?
run      the plans under every change
numbers  how far the plans move, with intervals
verdict  the card, and what is wrong, in words
main     the verb ``audit_planner``
"""
