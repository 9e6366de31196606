"""The lab on real models: public data, real pre-trained bases, rivals and controls. Not installed with the package."""
