"""Evaluation of the reader of numbers: ``digitserve-train evaluate --numbers`` and ``--simulated``.

    listing (files) or simulated ──▶ Sample ──reading──▶ Reading ──scoring──▶ figures ──▶ table (terminal), numbers.json
                                                                                   └──▶ gallery (HTML): the mistakes

``report`` runs all of it, and ``cli`` calls ``report``.
"""
