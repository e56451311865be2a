"""What developers and the two commands need: the host, its server, a client, setup. Never imported by the nodes."""
