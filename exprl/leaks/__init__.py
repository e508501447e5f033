"""How much of the references reached the policy: facts planted in them, looked for in what it has learnt."""
