"""What a trial computes: one file per study, and in `common` what several studies share."""
