"""The coordination protocol: who am I, who are my peers. Client and server machines over the same messages."""
