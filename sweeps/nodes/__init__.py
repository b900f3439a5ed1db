"""The machines that a sweep runs on: joining a Ray, checking its nodes, and what becomes of those that leave."""
