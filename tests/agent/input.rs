//! Written with the failures of the API server and the kubelet.
