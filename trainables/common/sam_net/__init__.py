"""Parts of the study `sam_net`: its config and timeline, and its images."""
