"""Heads of a model of photos alone: one file a head, and the choice among them."""
