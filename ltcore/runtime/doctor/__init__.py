"""Is every node fit to run on Ray?"""
