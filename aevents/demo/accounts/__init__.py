"""The service where people sign up: async views, `await aemit(...)`."""
