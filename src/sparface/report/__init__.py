"""Figures and pages for people: `compare` puts runs side by side in one HTML file."""
