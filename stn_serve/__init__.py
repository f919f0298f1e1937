"""Serve spatial transformer networks: what is it, and where did the model look?"""
