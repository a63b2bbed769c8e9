//! Label selectors: two parsers that were written apart, the API server's and the agent's,
//! understand the same texts and select the same pods.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ListParams, ObjectMeta, PostParams},
};
use podsonde::{domain::selector::LabelSelector, embedded::Cluster};

/// The labels of every object in the test.
const LABELS: &[&[(&str, &str)]] = &[
    &[],
    &[("app", "web")],
    &[("app", "web"), ("example.com/tier", "front")],
    &[("app", "db"), ("env", "")],
    &[("env", "x"), ("example.com/tier", "back")],
];

const TEXTS: &[&str] = &[
    "",
    " ",
    "app",
    "!app",
    "! app",
    "app=web",
    "app==web",
    "app == web, example.com/tier!=back",
    "app!=web",
    "env=",
    "env!=",
    "env!=x",
    "app in (db, web)",
    "app in (web)",
    "app in ()",
    "app notin (db, web)",
    "env notin (x)",
    "env in (x)",
    "env in (,x)",
    "app,!env",
    "app in (web),example.com/tier=front",
    "=x",
    "!",
    "a b",
    "app in",
    "app in (x",
    "app in x)",
    "in (x)",
    "app out (x)",
    "!a=b",
    "a;b",
    "a=b=c",
    "a=b c",
    "a=b/c",
    "a,,b",
    ",",
    "a,",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_and_the_api_server_select_the_same() {
    let cluster = Cluster::builder().start().await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client().unwrap());
    for (number, labels) in LABELS.iter().enumerate() {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into()));
        let metadata = ObjectMeta {
            name: Some(format!("object-{number}")),
            labels: Some(labels.collect()),
            ..ObjectMeta::default()
        };
        let map = ConfigMap { metadata, ..ConfigMap::default() };
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    for text in TEXTS {
        let agents = LabelSelector::parse(text).ok().map(|selector| {
            let selected = LABELS.iter().enumerate().filter(|(_, labels)| {
                selector.matches(|key| labels.iter().find(|(k, _)| *k == key).map(|(_, v)| *v))
            });
            selected.map(|(number, _)| format!("object-{number}")).collect::<Vec<_>>()
        });
        let servers = match maps.list(&ListParams::default().labels(text)).await {
            Ok(list) => {
                let names = list.items.into_iter().filter_map(|map| map.metadata.name);
                Some(names.filter(|name| name.starts_with("object-")).collect::<Vec<_>>())
            }
            Err(kube::Error::Api(status)) if status.code == 400 => None,
            Err(error) => panic!("{text:?}: {error}"),
        };
        assert_eq!(agents, servers, "{text:?}");
    }
}
