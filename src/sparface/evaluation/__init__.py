"""Evaluate a recognizer.

`verification` decides whether two faces are the same person, `identify` who is on a photo; `identification`,
`scores` and `weighted` have the arithmetic, `bootstrap` the intervals, `recognizers` opens what is evaluated,
and `results` writes the document.
"""
