"""Ray: places the parts on devices, supervises them, and embeds the pipeline."""
