//! The table as a script, which is for real clusters (`tests/cluster`), on the embedded one.

use podsonde::kube::leases;
use tokio::process::Command;

use crate::world::{NODE, SLEEP, World, within};

#[tokio::test(flavor = "multi_thread")]
async fn the_script_for_real_clusters_passes() {
    if Command::new("kubectl").args(["version", "--client"]).output().await.is_err() {
        assert!(std::env::var_os("CI").is_none(), "no kubectl, and CI is set");
        return;
    }
    let world = World::start().await;
    world.pod("default", "web", serde_json::json!({})).await;
    world.cluster.register_agent(NODE, world.tls_address()).await.unwrap();
    within(async {
        while leases::of_node(&world.admin, "podsonde", NODE).await.unwrap().is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let home = tempfile::tempdir().unwrap();
    let kubeconfig = home.path().join("kubeconfig");
    std::fs::write(&kubeconfig, world.cluster.kubeconfig()).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster-access");
    let output = Command::new(script)
        .args(["default", "web", "other"])
        .env("KUBECONFIG", &kubeconfig)
        .env("HOME", home.path())
        .env("PODSONDE", env!("CARGO_BIN_EXE_podsonde"))
        .env("BUSYBOX_IMAGE", SLEEP)
        // The embedded API server has no port-forward of kubectl's kind.
        .env("AGENT_ADDRESS", world.tls_address().to_string())
        .output()
        .await
        .unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}");
    // Five operations; two of them need two rights, three one.
    assert!(
        output.status.success() && stdout.ends_with("47 passed, 0 failed\n"),
        "{stdout}\n{stderr}"
    );
    world.end().await;
}
