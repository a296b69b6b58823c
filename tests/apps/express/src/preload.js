process.env.PRELOADED = "yes";
