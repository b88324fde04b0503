"""Families: the published numbers of each kind of model, and what its plain chain does beside the others'.

Nothing outside a family's own file asks for its name: what differs is said in the types of the plan.
"""
