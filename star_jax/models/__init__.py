"""The decoder and its attention. Parameters are plain trees of arrays; no module depends on tasks, files or runs.

An option that changes the parameters, such as another norm, is a field of config.ModelConfig and a change in layers.py
or decoder.py. These places have to know it, too:

- config.ModelConfig.check and check_complete: its values, and the architectures it fits;
- algorithms/setup.model_config and weights/checkpoint.load_config: they take it from the base model;
- weights/sources/hf.py (TABLES, _read_config, _config_json) and mesh_transformer.py (TABLE): they convert it, or raise
  InputError. `hf.save` does not notice a parameter that the format needs and the model lacks;
- tests/support/weights.py, whose oracles are GPT-J and GPT-2 of torch.

Shardings, checkpoints, fingerprints, the optimizer, the cached passes and preflight follow the tree of parameters.
"""
