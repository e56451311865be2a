"""Small real base models, made from open emoji artwork, that a CPU can train and personalise.

`build` makes them (a developer's job, done once), `assemble` turns the shipped weights into ordinary
checkpoints, `truth` gives the true pictures of what pretraining never saw.
"""
