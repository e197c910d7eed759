"""A trained model: photos in, answers out; classes come and go without training."""
