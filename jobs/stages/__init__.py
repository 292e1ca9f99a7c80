"""The stages: a function of (configuration, input artefacts) that commits one artefact."""
