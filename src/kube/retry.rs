//! Retries of requests to the API server.

use std::time::Duration;

/// The pauses between tries: short, as somebody waits, and few, as the server may be overloaded.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(300)];

/// Makes a request, and repeats it after an error that may pass: at most three tries in all.
pub(super) async fn retried<T, F>(
    is_worth_it: impl Fn(&kube::Error) -> bool,
    mut request: impl FnMut() -> F,
) -> kube::Result<T>
where
    F: Future<Output = kube::Result<T>>,
{
    for pause in PAUSES {
        match request().await {
            Err(error) if is_worth_it(&error) => tokio::time::sleep(pause).await,
            answered => return answered,
        }
    }
    request().await
}
