//! Calls about what a guest's machine has got from the host: processors, memory, a network and the streams
//! that stand for connections.

use std::net::Ipv4Addr;

use cloister_protocol::agent::{
    AddMemoryRequest, AddProcessorsRequest, ForwardRequest, ResolveRequest, SetNetworkRequest,
};

use super::{Agent, AgentError, context};

impl Agent {
    /// Has the guest start processors that its machine has got, so that `count` run. Tells how many do.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn add_processors(&self, count: u32) -> Result<u32, AgentError> {
        let request = AddProcessorsRequest {
            count,
            ..AddProcessorsRequest::default()
        };
        let call = self.client.add_processors(context(), &request);
        Ok(self.bounded("AddProcessors", call).await?.count)
    }

    /// Has the guest take memory that its machine has got; `device` is the number of the memory device.
    /// It does so by and by.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn add_memory(&self, device: u32) -> Result<(), AgentError> {
        let request = AddMemoryRequest {
            device,
            ..AddMemoryRequest::default()
        };
        let call = self.client.add_memory(context(), &request);
        self.bounded("AddMemory", call).await?;
        Ok(())
    }

    /// Makes a container's network what the request says.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn set_network(&self, request: SetNetworkRequest) -> Result<(), AgentError> {
        let call = self.client.set_network(context(), &request);
        self.bounded("SetNetwork", call).await?;
        Ok(())
    }

    /// Connects the stream that begins with `token` to a TCP port of a container's loopback
    /// interface; `ipv6` says which address is tried first.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn forward(
        &self,
        id: &str,
        port: u16,
        ipv6: bool,
        token: Vec<u8>,
    ) -> Result<(), AgentError> {
        let request = ForwardRequest {
            container_id: id.to_owned(),
            port: port.into(),
            ipv6,
            token,
            ..ForwardRequest::default()
        };
        let call = self.client.forward(context(), &request);
        self.bounded("Forward", call).await?;
        Ok(())
    }

    /// Has the datagrams for the DNS port of a loopback address of a container carried over the
    /// stream that begins with `token`.
    ///
    /// # Errors
    /// The agent's reason.
    pub async fn resolve(
        &self,
        id: &str,
        address: Ipv4Addr,
        token: Vec<u8>,
    ) -> Result<(), AgentError> {
        let request = ResolveRequest {
            container_id: id.to_owned(),
            address: address.into(),
            token,
            ..ResolveRequest::default()
        };
        let call = self.client.resolve(context(), &request);
        self.bounded("Resolve", call).await?;
        Ok(())
    }
}
