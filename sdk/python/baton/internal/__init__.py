"""What replicas of Baton say to each other; of no use to anybody else."""
