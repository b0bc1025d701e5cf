"""What others read of the signals: the view of the current ones, Redis, and their picture.

Nothing new is computed here.
"""
