"""What a run was worth: metrics of models, comparable across models and methods."""
