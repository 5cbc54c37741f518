"""Who a party is: names in certificates, and the CA that gives them."""
