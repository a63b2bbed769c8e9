//! The pods' volumes: directories on the host with the content that the pod's spec describes.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Volume,
};
use tokio::fs;

use super::spec::field_value;

/// Where the content of volumes comes from.
pub(super) trait VolumeSources: Sync {
    /// The data of a ConfigMap in the pod's namespace; none if it does not exist.
    fn config_map(&self, name: &str) -> Option<BTreeMap<String, String>>;
    /// A new token for the pod's service account.
    fn token(&self) -> String;
}

/// The files of a volume: paths in it with their contents.
type Files = BTreeMap<String, String>;

/// Makes the pod's volumes below `root` and returns the path of each.
///
/// # Errors
/// A message for people, the kubelet's where it has one.
pub(super) async fn make(
    root: &Path,
    pod: &Pod,
    sources: &dyn VolumeSources,
) -> Result<BTreeMap<String, PathBuf>, String> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut made = BTreeMap::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let directory = root.join(uid).join(&volume.name);
        let path = make_one(&directory, pod, volume, sources).await.map_err(|why| {
            format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name)
        })?;
        made.insert(volume.name.clone(), path);
    }
    Ok(made)
}

/// Removes the volumes of the pod with this UID, if there are any.
pub(super) async fn remove(root: &Path, uid: &str) -> io::Result<()> {
    match fs::remove_dir_all(root.join(uid)).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

async fn make_one(
    directory: &Path,
    pod: &Pod,
    volume: &Volume,
    sources: &dyn VolumeSources,
) -> Result<PathBuf, String> {
    if let Some(host) = &volume.host_path {
        return Ok(PathBuf::from(&host.path));
    }
    let (files, mode) = if volume.empty_dir.is_some() {
        (Files::new(), 0o777)
    } else if let Some(source) = &volume.config_map {
        (config_map(sources, source)?, 0o755)
    } else if let Some(source) = &volume.projected {
        (projected(pod, sources, source)?, 0o755)
    } else if let Some(source) = &volume.downward_api {
        (downward(pod, source.items.as_deref())?, 0o755)
    } else {
        return Err("this kind of volume is not supported".to_owned());
    };
    write(directory, &files, mode).await.map_err(|why| why.to_string())?;
    Ok(directory.to_owned())
}

async fn write(directory: &Path, files: &Files, mode: u32) -> io::Result<()> {
    fs::create_dir_all(directory).await?;
    // Containers run as any user, so that the umask must not count.
    fs::set_permissions(directory, std::fs::Permissions::from_mode(mode)).await?;
    for (path, contents) in files {
        let path = directory.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).await?;
        }
        fs::write(&path, contents).await?;
        fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).await?;
    }
    Ok(())
}

/// Checks that a path stays inside its volume.
fn inside(path: &str) -> Result<String, String> {
    let stays = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if stays && !path.is_empty() {
        Ok(path.to_owned())
    } else {
        Err(format!("invalid path {path:?}"))
    }
}

fn config_map(
    sources: &dyn VolumeSources,
    source: &ConfigMapVolumeSource,
) -> Result<Files, String> {
    keys(sources, &source.name, source.items.as_deref(), source.optional)
}

fn keys(
    sources: &dyn VolumeSources,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
) -> Result<Files, String> {
    let optional = optional == Some(true);
    let Some(data) = sources.config_map(name) else {
        return if optional {
            Ok(Files::new())
        } else {
            Err(format!("configmap {name:?} not found"))
        };
    };
    let Some(items) = items else {
        return data.into_iter().map(|(key, value)| Ok((inside(&key)?, value))).collect();
    };
    let mut files = Files::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => drop(files.insert(inside(&item.path)?, value.clone())),
            None if optional => {}
            None => {
                return Err(format!("configmap references non-existent config key: {}", item.key));
            }
        }
    }
    Ok(files)
}

fn downward(pod: &Pod, items: Option<&[DownwardAPIVolumeFile]>) -> Result<Files, String> {
    let mut files = Files::new();
    for item in items.unwrap_or_default() {
        let path =
            item.field_ref.as_ref().map(|field| field.field_path.as_str()).unwrap_or_default();
        let value =
            field_value(pod, None, path).ok_or_else(|| format!("unsupported fieldPath: {path}"))?;
        files.insert(inside(&item.path)?, value);
    }
    Ok(files)
}

fn projected(
    pod: &Pod,
    sources: &dyn VolumeSources,
    source: &ProjectedVolumeSource,
) -> Result<Files, String> {
    let mut files = Files::new();
    for source in source.sources.iter().flatten() {
        if let Some(token) = &source.service_account_token {
            files.insert(inside(&token.path)?, sources.token());
        }
        if let Some(map) = &source.config_map {
            files.extend(keys(sources, &map.name, map.items.as_deref(), map.optional)?);
        }
        if let Some(api) = &source.downward_api {
            files.extend(downward(pod, api.items.as_deref())?);
        }
        if let Some(secret) = source.secret.as_ref().filter(|secret| secret.optional != Some(true))
        {
            return Err(format!("secret {:?} not found", secret.name));
        }
    }
    Ok(files)
}
