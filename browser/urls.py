"""Every address of the site."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path, re_path, register_converter
from django.views.generic import RedirectView

from browser.converters import ChangeConverter, KeepingConverter, SaeConverter
from browser.views import accounts, imports, latents, management, runs, saes, sharing, site, sources, uploads

register_converter(SaeConverter, "sae")
register_converter(ChangeConverter, "change")
register_converter(KeepingConverter, "keeping")

handler404 = site.not_found
handler500 = site.server_error

urlpatterns = [
    path("", saes.home, name="home"),
    path("saes.json", saes.sae_list_json, name="home_json"),
    path("s/<sae:ref>", saes.sae_detail, name="sae_detail"),
    path("s/<sae:ref>.json", saes.sae_json, name="sae_json"),
    path("s/<sae:ref>/latents.json", saes.sae_latents_json, name="sae_latents_json"),
    path("s/<sae:ref>/latents.csv", saes.sae_latents_csv, name="sae_latents_csv"),
    path("s/<sae:ref>/scatter.json", saes.sae_scatter_json, name="sae_scatter_json"),
    path("s/<sae:ref>/random", latents.latent_random, name="latent_random"),
    path("s/<sae:ref>/<int:index>", latents.latent_detail, name="latent_detail"),
    path("s/<sae:ref>/<int:index>.json", latents.latent_json, name="latent_json"),
    path("s/<sae:ref>/<int:index>/contexts", latents.latent_contexts, name="latent_contexts"),
    path("s/<sae:ref>/<int:index>/cite", sharing.latent_cite, name="latent_cite"),
    path("s/<sae:ref>/<int:index>/cite.json", sharing.latent_cite_json, name="latent_cite_json"),
    path("s/<sae:ref>/<int:index>/embed", sharing.latent_embed, name="latent_embed"),
    path("s/<sae:ref>/<int:index>/card.png", sharing.latent_card, name="latent_card"),
    path("s/<sae:ref>/settings", management.sae_settings_page, name="sae_settings"),
    path("s/<sae:ref>/runs/<int:number>/<keeping:action>", management.run_keep, name="run_keep"),
    path(
        "s/<sae:ref>/runs/<int:number>/<keeping:action>.json",
        management.run_keep, {"as_json": True}, name="run_keep_json",
    ),
    path("s/<sae:ref>/<change:action>", management.sae_change, name="sae_change"),
    path("s/<sae:ref>/<change:action>.json", management.sae_change, {"as_json": True}, name="sae_change_json"),
    path("s/<sae:ref>/", saes.without_slash),
    path("s/<sae:ref>/<int:index>/", saes.without_slash),
    path("s/<slug:slug>", saes.sae_by_name, name="sae_by_name"),
    re_path(r"^s/(?P<slug>[-\w]+)(?P<rest>(?:@r\d{1,9})?(?:[/.].*)?)$", saes.sae_by_name),
    path("jobs", runs.run_list, name="run_list"),
    path("jobs.json", runs.run_list_json, name="run_list_json"),
    path("jobs/live", runs.runs_live, name="runs_live"),
    path("jobs/others", runs.runs_others, name="runs_others"),
    path("jobs/running", runs.runs_running, name="runs_running"),
    path("jobs/<int:pk>", runs.run_detail, name="run_detail"),
    path("jobs/<int:pk>.json", runs.run_json, name="run_json"),
    path("jobs/<int:pk>/live", runs.run_live, name="run_live"),
    path("jobs/<int:pk>/cancel", runs.run_steer, {"action": "cancel"}, name="run_cancel"),
    path("jobs/<int:pk>/cancel.json", runs.run_steer_json, {"action": "cancel"}, name="run_cancel_json"),
    path("jobs/<int:pk>/resume", runs.run_steer, {"action": "resume"}, name="run_resume"),
    path("jobs/<int:pk>/resume.json", runs.run_steer_json, {"action": "resume"}, name="run_resume_json"),
    path("upload", uploads.upload, name="upload"),
    path("imports/<uuid:key>", uploads.import_detail, name="import_detail"),
    path("imports/<uuid:key>/live", uploads.import_live, name="import_live"),
    path("imports", imports.import_create, name="import_create"),
    path("imports.json", imports.import_list_json, name="imports_json"),
    path("imports/<uuid:key>.json", imports.import_json, name="import_json"),
    path("imports/<uuid:key>/save", imports.import_save, name="import_save"),
    path("imports/<uuid:key>/check", imports.import_check, name="import_check"),
    path("imports/<uuid:key>/start", imports.import_start, name="import_start"),
    path("imports/<uuid:key>/cancel", imports.import_cancel, name="import_cancel"),
    path("imports/<uuid:key>/files", imports.import_files, name="import_files"),
    path("imports/<uuid:key>/files/form", imports.import_form, name="import_files_form"),
    path("imports/<uuid:key>/files/<uuid:file>", imports.import_file, name="import_file"),
    path("api/imports", imports.import_api, name="api_imports"),
    path("models", sources.lm_list, name="lm_list"),
    path("models.json", sources.lm_list, name="lm_list_json"),
    path("models/<int:pk>", sources.lm_detail, name="lm_detail"),
    path("models/<int:pk>.json", sources.lm_detail, name="lm_json"),
    path("models/<int:pk>/delete", sources.lm_delete, name="lm_delete"),
    path("models/<int:pk>/delete.json", sources.lm_delete),
    path("datasets", sources.dataset_list, name="dataset_list"),
    path("datasets.json", sources.dataset_list, name="dataset_list_json"),
    path("datasets/<int:pk>", sources.dataset_detail, name="dataset_detail"),
    path("datasets/<int:pk>.json", sources.dataset_detail, name="dataset_json"),
    path("datasets/<int:pk>/for", sources.dataset_for, name="dataset_for"),
    path("datasets/<int:pk>/for.json", sources.dataset_for),
    path("datasets/<int:pk>/delete", sources.dataset_delete, name="dataset_delete"),
    path("datasets/<int:pk>/delete.json", sources.dataset_delete),
    path("additions/<int:pk>", sources.addition, name="addition"),
    path("additions/<int:pk>.json", sources.addition, name="addition_json"),
    path("additions/<int:pk>/live", sources.addition_live, name="addition_live"),
    path("additions/<slug:kind>/live", sources.additions_live, name="additions_live"),
    path("additions/<int:pk>/cancel", sources.addition_steer, {"action": "cancel"}, name="addition_cancel"),
    path("additions/<int:pk>/cancel.json", sources.addition_steer, {"action": "cancel"}),
    path("additions/<int:pk>/again", sources.addition_steer, {"action": "again"}, name="addition_again"),
    path("additions/<int:pk>/again.json", sources.addition_steer, {"action": "again"}),
    path("additions/<int:pk>/forget", sources.addition_steer, {"action": "forget"}, name="addition_forget"),
    path("additions/<int:pk>/forget.json", sources.addition_steer, {"action": "forget"}),
    path("login", accounts.login, name="login"),
    path("logout", accounts.logout, name="logout"),
    path("register", accounts.register, name="register"),
    path("account", accounts.account, name="account"),
    path("account/tokens", accounts.token_create, name="token_create"),
    path("account/tokens/<int:pk>/revoke", accounts.token_revoke, name="token_revoke"),
    path("account/password", accounts.password_change, name="password_change"),
    path("oembed", sharing.oembed, name="oembed"),
    path("go", site.jump, name="jump"),
    path("healthz", site.healthz, name="healthz"),
    path("admin/login/", RedirectView.as_view(pattern_name="login", query_string=True)),
    path("admin/", admin.site.urls),
]
