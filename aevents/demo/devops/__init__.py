"""What the fleet shares; in your fleet a git submodule or a package of its own."""
