//! What containerd and a shim that starts say to each other: the protocol of containerd 2.3, and
//! the one before it.
//!
//! Since 2.3 a `BootstrapParams` message comes on standard input and a `BootstrapResult` is
//! expected on standard output. Before, an `Any` with the runtime's options came, and a bare
//! address was enough. The two cannot be told apart by their form alone: an id and a namespace take
//! the places of an `Any`'s type and value. What only the newer one has, containerd's version,
//! decides.

use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::json;

/// The most that is read from standard input, in bytes.
pub(crate) const INPUT_MAX: u64 = 1 << 20;

/// The version of the shim's interface since then: containerd speaks to it as to a sandbox, and does not start or
/// delete it for each container of a pod. A bare address means version 2, more than which CRI-O and containerd 1.7
/// refuse.
const VERSION: u8 = 3;

/// What came on standard input.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Input {
    /// The parameters, of containerd 2.3 and newer.
    pub(crate) params: Option<BootstrapParams>,
    /// The runtime's options, if there are any.
    pub(crate) options: Option<Any>,
}

/// What came was no message of either protocol.
#[derive(Debug, thiserror::Error)]
#[error("standard input is neither BootstrapParams nor options")]
pub(crate) struct InputError(#[from] protobuf::Error);

impl Input {
    /// Understands what came.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, InputError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let params = BootstrapParams::parse_from_bytes(bytes);
        if let Ok(params) = params
            && !params.containerd_version.is_empty()
        {
            let options = params.extensions.iter().find_map(|extension| {
                let value = extension.value.as_ref()?;
                super::options::is_known(&value.type_url).then(|| value.clone())
            });
            return Ok(Self {
                params: Some(params),
                options,
            });
        }
        let options = Any::parse_from_bytes(bytes)?;
        Ok(Self {
            params: None,
            options: (!options.type_url.is_empty()).then_some(options),
        })
    }

    /// What standard output is to say of a shim that listens at `address`, to who does not tell what it understands
    /// in the `configured` version.
    pub(crate) fn answer(&self, address: &str, configured: u8) -> Vec<u8> {
        const PROTOCOL: &str = "ttrpc";
        if self.params.is_none() {
            if configured < VERSION {
                return address.as_bytes().to_vec();
            }
            let result = json!({"version": configured, "address": address, "protocol": PROTOCOL});
            return result.to_string().into_bytes();
        }
        let result = BootstrapResult {
            version: VERSION.into(),
            address: address.to_owned(),
            protocol: PROTOCOL.into(),
            ..BootstrapResult::default()
        };
        // Encoding fails for messages beyond 2 GiB alone.
        result.write_to_bytes().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::bootstrap_api::Extension;
    use protobuf::MessageField;

    use super::*;

    fn any() -> Any {
        Any {
            type_url: "runtimeoptions.v1.Options".into(),
            value: vec![1],
            ..Any::default()
        }
    }

    #[test]
    fn both_protocols_are_told_apart() {
        let nothing = Input::parse(b"").unwrap();
        assert_eq!(nothing, Input::default());
        assert_eq!(nothing.answer("unix:///a", 2), b"unix:///a");
        let told: serde_json::Value =
            serde_json::from_slice(&nothing.answer("unix:///a", 3)).unwrap();
        let expected = json!({"version": 3, "address": "unix:///a", "protocol": "ttrpc"});
        assert_eq!(told, expected);

        let before = Input::parse(&any().write_to_bytes().unwrap()).unwrap();
        assert_eq!((&before.params, &before.options), (&None, &Some(any())));
        assert_eq!(before.answer("unix:///a", 2), b"unix:///a");

        let extension = |value| Extension {
            value: MessageField::some(value),
            ..Extension::default()
        };
        let other = Any {
            type_url: "containerd.io/nri.v1.PluginConfig".into(),
            ..Any::default()
        };
        let params = BootstrapParams {
            instance_id: "x".into(),
            namespace: "k8s.io".into(),
            containerd_version: "2.3.0".into(),
            extensions: vec![extension(other), extension(any())],
            ..BootstrapParams::default()
        };
        let now = Input::parse(&params.write_to_bytes().unwrap()).unwrap();
        assert_eq!(now.options, Some(any()));
        assert_eq!(now.params, Some(params));
        let result = BootstrapResult::parse_from_bytes(&now.answer("unix:///a", 2)).unwrap();
        assert_eq!((result.version, &*result.address), (3, "unix:///a"));
        assert_eq!(result.protocol, "ttrpc");
    }

    #[test]
    fn garbage_is_refused() {
        Input::parse(&[0xff; 9]).unwrap_err();
    }
}
