"""The daily report: its figures, realised profit and loss, and its words in Korean.

When it is sent belongs in `schedules/reports`, how it reaches Discord in `alerts/delivery`.
"""
