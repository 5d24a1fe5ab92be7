"""Published systems, one file each: compositions of parts, found through the registry by their ids."""
