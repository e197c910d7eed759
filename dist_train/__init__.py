"""Few-Shot Image Recognition by Predicting Parameters from Activations, at full ImageNet scale."""

__version__ = "0.1.0"
