"""A shop whose services know nothing of Baton; `orders.yaml` joins them into the workflow `fulfil-order`."""
