"""On a device: the resident agent and its link to the server."""
