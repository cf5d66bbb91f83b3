"""The service that takes money: no views but the endpoint, two apps that share events."""
