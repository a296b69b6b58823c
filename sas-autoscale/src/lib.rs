//! Pure, replayable autoscalers of the sas serverless SDK and the driver that ticks them
