"""The controller: a pure core that decides, and a shell around it that reads and acts."""
