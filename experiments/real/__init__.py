"""Experiments on pre-trained models and public data, with rivals and controls. Not part of the installed package."""
