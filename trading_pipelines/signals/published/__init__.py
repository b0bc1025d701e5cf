"""What others read of the signals: the current ones, their copy in Redis, their picture.

Nothing new is computed here.
"""
